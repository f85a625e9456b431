"""Which kernel serves a call, and what makes a repeated call cheap."""
