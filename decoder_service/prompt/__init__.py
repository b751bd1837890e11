"""From what a caller asked to a row of tokens, whatever tokenizer and template a checkpoint has."""
