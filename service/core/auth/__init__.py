"""Authentication and access control.

`origin` checks where a request comes from; `credentials` parses what it carries; `authenticator`
turns that into a `Principal`; `store` persists users, keys and sessions. The rest of the service
uses principals only.
"""
