"""Keeps a completion inside a language: a JSON schema, a regular expression, a grammar."""
