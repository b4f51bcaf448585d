"""3D networks that take the weights of a 2D Vision Transformer."""

from neurodeploy.networks._config import NetworkConfig
from neurodeploy.networks._cost import Cost, cost
from neurodeploy.networks._network import Network, probability_module

__all__ = ["Cost", "Network", "NetworkConfig", "cost", "probability_module"]
