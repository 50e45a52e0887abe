"""Train one universal Transformer, and cut from it the sub-model that any budget asks for."""

