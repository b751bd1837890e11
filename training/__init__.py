"""How the demo model is made: pictures, questions, tokenizer, training, export, evaluation."""
