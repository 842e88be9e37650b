"""One run: what is asked for, the machine that conducts it, how its requests are made, what comes of it."""
