"""Who is asking: credentials, the principals that they stand for, and whether a request may have come from elsewhere.

`source` judges where a request comes from; `credentials` reads what it carries; `door` turns that into a `Principal`;
`store` keeps users, keys and sessions. Everything else in the service knows principals alone.
"""
