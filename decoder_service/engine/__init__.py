"""One request from its admission to its last token, and the loop that turns the steps."""
