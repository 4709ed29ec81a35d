"""Text as windows of tokens, and the tokenizers that make them."""
