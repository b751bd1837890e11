"""Tokens that are tried before anybody knows them, and kept where they turn out to be right."""
