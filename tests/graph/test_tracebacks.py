"""A script that ends with an error shows the user's own lines and one message."""

import contextlib
import io
import os
import runpy
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


@pytest.fixture(autouse=True)
def _no_hook_of_other_tests(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def ended(tmp_path, body, use='print(load.output["txt"])', **environment):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body, use=use))
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    return done.stderr


def shown(script):
    """What is on the terminal after a script that ends with an error, which is run in this process."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Exception as error:
        trace = error.__traceback__
        while trace.tb_frame.f_code.co_filename != str(script):
            trace = trace.tb_next
        with contextlib.redirect_stderr(io.StringIO()) as terminal:
            sys.excepthook(type(error), error, trace)
        return terminal.getvalue()
    raise AssertionError("the script did not fail")


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
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body="return ['a', 'b']", use=f"load.{call}"))
    said = shown(script).splitlines()
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


STEP = """
from datadreamer_like import DataDreamer, concurrent
from datadreamer_like.steps import DataSource, LazyRowBatches, LazyRows, Step, SuperStep

def fails(*_, **__):
    return int("seven")  # the line

class Load(Step):
    def setup(self): self.register_output("text")
    def run(self): return BODY
class Process(Step):
    def setup(self):
        self.register_input("n")
        self.register_output("text")
    def process(self, batch): return {"text": [fails(n) for n in batch["n"]]}
class Registers(Step):
    def setup(self): fails()
    def run(self): return []
def second():
    yield {"n": 1}
    yield {"n": fails()}
class Outer(SuperStep):
    def setup(self): self.register_output("text")
    def run(self): return Process("Inner", inputs={"n": DataSource("N", data={"n": [1]}).output["n"]}).output["text"]

with DataDreamer(":memory:"):
    rows = DataSource("Rows", data={"n": [1, 2]})
    USE
"""

USES = {
    "run": ("fails()", "Load('Name')"),
    "a generator": ("(fails() for _ in range(3))", "Load('Name')"),
    "lazy rows": ("LazyRows(lambda: (fails() for _ in range(3)), save=True)", "Load('Name')"),
    "lazy rows that the script reads": ("LazyRows(lambda: (fails() for _ in range(3)))", "list(Load('Name').output)"),
    "process": ("", "Process('Name', inputs={'n': rows.output['n']})"),
    "a step in a step": ("", "Outer('Name')"),
    "a source's generator": ("", "DataSource('Name', data=lambda: (fails() for _ in range(3))).save()"),
    "map": ("", "rows.map(fails, lazy=False, name='Name')"),
    "map, lazy": ("", "list(rows.map(fails, name='Name').output)"),
    "filter": ("", "rows.filter(fails, lazy=False, name='Name')"),
    "a function in another thread": ("", "concurrent(lambda: rows.map(fails, lazy=False, name='Name'))"),
    "lazy batches": ("LazyRowBatches(lambda: ([fails()] for _ in range(3)))", "list(Load('Name').output)"),
    "lazy rows that are exported": ("LazyRows(lambda: (fails() for _ in range(3)))", "Load('Name').export_to_list()"),
    "lazy rows that another step reads": ("LazyRows(lambda: (fails() for _ in range(3)))", "Load('Name').save()"),
    "a source's generator, lazy": ("", "list(DataSource('Name', data=lambda: (fails(n) for n in range(3))).output)"),
    "a source's second row": ("", "list(DataSource('Name', data=second).output)"),
    "setup": ("", "Registers('Name')"),
    "a function of concurrent": ("", "concurrent(list, fails)"),
    "a background step": ("fails()", "Load('Name', background=True).wait()"),
}


@pytest.mark.parametrize("use", USES)
def test_an_error_in_the_users_own_function_shows_their_frames_and_one_line_of_ours(tmp_path, use):
    body, line = USES[use]
    script = tmp_path / "script.py"
    script.write_text(STEP.replace("BODY", body or "None").replace("USE", line))
    terminal = shown(script)
    said = terminal.splitlines()
    files = [text for text in said if text.startswith("  File ")]
    assert files
    assert all(str(script) in text for text in files), terminal
    assert '    return int("seven")  # the line' in said
    errors = [index for index, text in enumerate(said) if text.startswith("ValueError: invalid literal")]
    assert len(errors) == 1, terminal
    assert len(said) - errors[0] == 2, terminal
    named = {"a function of concurrent": "concurrent called, number 2", "a step in a step": '"Name / Inner" called'}
    assert named.get(use, '"Name" called') in said[-1] or said[-1].startswith("The function of "), terminal
    assert f"    {line}" in said


@pytest.mark.parametrize("use", ["map", "map, lazy", "filter", "a function in another thread"])
def test_a_next_that_finds_nothing_shows_the_users_frames(tmp_path, use):
    script = tmp_path / "script.py"
    script.write_text(STEP.replace("USE", USES[use][1]).replace('int("seven")', "next(iter(()))"))
    said = shown(script).splitlines()
    files = [text for text in said if text.startswith("  File ")]
    assert len(files) >= 2
    assert all(str(script) in text for text in files), said
    assert "    return next(iter(()))  # the line" in said
    assert said[-2] == "StopIteration"
    assert said[-1].startswith("The function of ")
    assert f"    {USES[use][1]}" in said


def test_libraries_that_the_users_code_calls_and_causes_are_shown(tmp_path):
    said = ended(tmp_path, "import json; return json.loads('{')")
    assert "json/decoder.py" in said
    assert "datadreamer_like/" not in said
    raised = "\n        try: 1 / 0\n        except ZeroDivisionError as error: raise KeyError('odd') from error"
    said = ended(tmp_path, raised)
    assert "ZeroDivisionError: division by zero\n\nThis error led to the next one:" in said
    assert said.splitlines()[-2:] == ["KeyError: 'odd'", 'It was raised by code of the script that "Load" called.']


def test_ctrl_c_says_that_nothing_is_lost(tmp_path):
    # In a shell's background job Python starts with the signal ignored.
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    said = ended(tmp_path, f"import os, signal; {heeded}; os.kill(os.getpid(), signal.SIGINT); return [1]")
    assert said.splitlines()[-1] == "Interrupted. Finished work is saved: run the script again and it continues."
    assert "Traceback" not in said


CONSOLE = """
import code
code.InteractiveInterpreter(locals()).runsource("raise KeyboardInterrupt")
print(7 * kept)
"""


@pytest.mark.parametrize("prompt", ["python", "python -i", "code"])
def test_ctrl_c_at_a_prompt_keeps_the_prompt_and_its_variables(tmp_path, prompt):
    begun = "from datadreamer_like import DataDreamer\nDataDreamer(':memory:').start()\nkept = 6\n"
    lines, arguments = f"{begun}raise KeyboardInterrupt\n\nprint(7 * kept)\n", ["-i"]
    if prompt != "python":
        script = tmp_path / "script.py"
        script.write_text(begun + (CONSOLE if prompt == "code" else "raise KeyboardInterrupt"))
        lines, arguments = "print(7 * kept)\n", ["-i", str(script)] if prompt == "python -i" else [str(script)]
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split()[-1] == "42"
    assert "Interrupted. Finished work is saved: run it again and it continues." in done.stderr
