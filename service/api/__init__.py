"""The HTTP edge. FastAPI lives here and nowhere else; no SQL, no provider, no arithmetic."""
