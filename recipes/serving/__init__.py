"""OpenAI's interface over HTTP: what requests may say, how they are answered, and the server that does it."""
