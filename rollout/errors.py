"""What can go wrong between the trainer and an engine. Light: imports nothing."""


class EngineError(RuntimeError):
    """The engine is dead or its weights are unusable: start another one."""


class WeightUpdateError(RuntimeError):
    """A weight update was refused before it touched the model: the engine keeps the old weights."""


class StaleWeightsError(RuntimeError):
    """The engine's log-probs are not those of the weights that it claims to have."""
