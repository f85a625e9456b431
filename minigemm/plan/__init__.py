"""Which kernel serves a call, and what makes a repeated call cheap.

`cost` is the model of the machine, `choose` the way from a product to a config, `prepared` the launches that
stand ready, `ahead` compiles before the first call.
"""
