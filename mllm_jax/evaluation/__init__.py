"""Evaluation: questions, answers, scores."""
