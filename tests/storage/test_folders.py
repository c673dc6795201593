"""Locks end with their process, files are replaced as a whole, and refusals of the disk are explained."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy
import pytest

from datadreamer_like.errors import StorageError
from datadreamer_like.storage.folders import explained, locked, write_file


def test_a_lock_is_freed_by_the_death_of_its_holder_and_the_next_one_is_told_that_it_waited(tmp_path, caplog):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from datadreamer_like.storage.folders import locked
        with locked(Path(sys.argv[1]), "it"):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    lock = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({process.pid}, {int(signal.SIGKILL)})"]
    )
    with caplog.at_level("INFO", "datadreamer_like"), locked(lock, '"Step"') as waited:
        assert waited
    killer.wait()
    process.communicate()
    assert '"Step": another process is working on it' in caplog.text
    with locked(lock, "again") as waited:
        assert not waited


def test_a_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "note.json"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.json"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    # A limit on file size makes the system refuse as a full disk does, without filling one.
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from datadreamer_like import DataDreamer
        from datadreamer_like.errors import StorageError
        from datadreamer_like.steps import DataSource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with DataDreamer(sys.argv[1]):
            small = DataSource("Small", data={"text": ["x"]})
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                DataSource("Large", data={"text": ["x" * 1000] * 1000})
            except StorageError as error:
                print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert '"Large": no space left' in done.stdout, done.stderr
    assert "run the script again" in done.stdout
    assert (tmp_path / "small" / "node.json").exists()
    assert not (tmp_path / "large").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_clear_error_for_a_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"), explained("Saving", tmp_path):
        (tmp_path / "x").mkdir()


def test_no_permission_is_one_clear_error(tmp_path):
    with (
        pytest.raises(StorageError, match=r"Saving: no permission for .*Choose a folder"),
        explained("Saving", tmp_path),
    ):
        raise PermissionError(13, "Permission denied", str(tmp_path))


@pytest.mark.parametrize("library", ["safetensors", "shutil", "numpy", "torch", "faiss"])
def test_a_full_disk_is_explained_however_a_library_says_it(tmp_path, library):
    import faiss
    from safetensors.numpy import save_file
    from torch import save, zeros

    many = numpy.zeros(20_000)
    index = faiss.IndexFlatIP(10)
    index.add(many.reshape(-1, 10).astype("float32"))
    (tmp_path / "from").mkdir()
    many.tofile(tmp_path / "from/file")
    writes = {
        "safetensors": lambda: save_file({"a": many}, tmp_path / "to"),
        "shutil": lambda: shutil.copytree(tmp_path / "from", tmp_path / "to"),
        "numpy": lambda: many.tofile(tmp_path / "to"),
        "faiss": lambda: faiss.write_index(index, str(tmp_path / "to")),
        "torch": lambda: save(zeros(20_000), tmp_path / "to"),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match='"Step": no space left'), explained('"Step"', tmp_path):
            writes[library]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("error", [ConnectionError("[Errno 111] Connection refused"), ValueError("see (os error 2)")])
def test_an_error_of_the_users_own_that_quotes_a_number_stays_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, explained('"Step"', tmp_path):
        raise error
    assert caught.value is error
