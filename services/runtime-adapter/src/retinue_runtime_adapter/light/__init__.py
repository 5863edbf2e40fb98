"""The light runtime: an agent loop of our own for any endpoint that speaks OpenAI's chat completions."""
