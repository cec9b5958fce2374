"""Settings of the K2 network and of its optimiser. Light: imports nothing heavy."""

from dataclasses import dataclass, field
