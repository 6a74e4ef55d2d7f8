"""Occlusion against a plain loop, and the colours of the most probable classes."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import small
from scipy.special import softmax
