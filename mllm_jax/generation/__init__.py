"""Generation: prompts, sampling, decoding with a cache, chat sessions."""
