"""An OpenAI-compatible server over a reader, and over indexes."""
