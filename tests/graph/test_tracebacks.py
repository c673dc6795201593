"""A script that ends with an error shows the user's own lines and one message."""

import subprocess
import sys

SCRIPT = """
from datadreamer_like import DataDreamer
from datadreamer_like.steps import Step

class Load(Step):
    def setup(self):
        self.register_output("text")
    def run(self):
        {body}

with DataDreamer(":memory:"):
    load = Load("Load")
    print(load.output["txt"])
"""


def ended(tmp_path, body, **environment):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    return done.stderr


def test_a_typo_shows_the_line_and_the_way_out(tmp_path):
    said = ended(tmp_path, "return ['a']")
    assert 'print(load.output["txt"])' in said
    assert said.splitlines()[-1] == ('UnknownColumn: "Load" has no column "txt"; it offers: text. Did you mean "text"?')
    assert "datadreamer_like/" not in said
    assert "Traceback" not in said


def test_everything_is_shown_on_request(tmp_path):
    said = ended(tmp_path, "return ['a']", DATADREAMER_LIKE_FULL_TRACEBACK="1")
    assert "Traceback" in said
    assert "datadreamer_like/graph/output.py" in said


def test_errors_of_the_users_own_code_keep_their_traceback(tmp_path):
    said = ended(tmp_path, "return 1 / 0")
    assert "Traceback" in said
    assert said.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_ctrl_c_says_that_nothing_is_lost(tmp_path):
    said = ended(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGINT); return [1]")
    assert said.splitlines()[-1] == "Interrupted. Finished work is saved: run the script again and it continues."
    assert "Traceback" not in said
