"""TLS: the server's key, the clients' certificates, and how the bytes of a connection become clear text."""
