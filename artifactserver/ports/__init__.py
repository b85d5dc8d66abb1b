"""Where connections come in: the sockets, who is let in, and which protocol is spoken."""
