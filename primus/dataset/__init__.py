"""Text to tokenizer, tokens and samples."""
