"""The HTTP layer. FastAPI is imported only here."""
