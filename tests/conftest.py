import os
import sys
from pathlib import Path

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # whose rounding depends on the machine
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
