"""A script that ends with an error shows the user's own lines and one message."""

import os
import subprocess
import sys

import pytest

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
    {use}
"""


def ended(tmp_path, body, use='print(load.output["txt"])', **environment):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body, use=use))
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    return done.stderr


def test_a_typo_shows_the_line_and_the_way_out(tmp_path):
    said = ended(tmp_path, "return ['a']")
    assert 'print(load.output["txt"])' in said
    assert said.splitlines()[-1] == ('UnknownColumn: "Load" has no column "txt"; it offers: text. Did you mean "text"?')
    assert "datadreamer_like/" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ('map(lambda row: {"z": row["txt"]}, lazy=False)', "KeyError: 'txt'"),
        ('filter(lambda row: row["txt"], lazy=False)', "KeyError: 'txt'"),
        ('map(lambda text: 1 / 0, input_columns=["text"])', "ZeroDivisionError: division by zero"),
        ('map(lambda rows: {"z": rows["txt"]}, batched=True, lazy=False)', "KeyError: 'txt'"),
    ],
)
def test_an_error_in_a_function_of_rows_shows_its_line_the_step_and_the_columns(tmp_path, call, error):
    said = ended(tmp_path, "return ['a', 'b']", f"load.{call}").splitlines()
    where = "rows 0 to 1" if "batched" in call else "row 0"
    operation = call.partition("(")[0]
    note = f'The function of {operation} of "Load" was given {where} of its input (counted from 0), with: text.'
    assert said[-2:] == [error, note]
    assert f"    load.{call}" in said
    assert not [line for line in said if "datadreamer_like" in line or "Traceback" in line]


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
