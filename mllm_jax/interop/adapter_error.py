"""What keeps adapters from another library's format."""


class AdapterError(ValueError):
    """Adapters that peft's format, or plain weights, cannot hold."""
