"""The demo: real handwritten digits become scenes, a small multimodal LLM learns to talk about them."""
