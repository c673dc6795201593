"""Steps that ask LLMs in several rounds, each round a prompting step of its own."""
