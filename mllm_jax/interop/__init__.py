"""Interop: Hugging Face folders in and out, and this project's own folders."""
