"""Generation: subnets draft for the universal model that holds them."""

from elastic.generation.speculative import Speculation, check_draft, speculative_generate

__all__ = ["Speculation", "check_draft", "speculative_generate"]
