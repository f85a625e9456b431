"""Which kernel serves a call, and what makes a repeated call cheap.

`cost` is the model of the machine, `choose` the way from a product to a config, `tuned` the configs that were
measured to be the best, `prepared` the launches that stand ready. `ahead` compiles before the first call, and
`explained` tells why a call gets its kernel.
"""
