"""More clients that take us for the Hub: JavaScript's, datasets, pandas, pyarrow, and plain ones at
the Hub's URLs.
"""

import json
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import Launcher, clean_environment, need_program
from tests.e2e.client_site import LARGE, MODEL, SECRET, ClientSite
from tests.e2e.clients import CLIENTS, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import OTHER_TOKEN, TOKEN, read_tree, run_script, upload

TABLE = "tester/table"
NUM_ROWS = 200_000

pytestmark = pytest.mark.timeout(300)  # some clients are installed first


def run_node(folder: Path, script: str, *arguments: str) -> str:
    """Run a module with all of the JavaScript client as `hub`; gives what it prints."""
    path = folder / "script.mjs"
    path.write_text(
        'import * as hub from "@huggingface/hub";\n'
        "const [hubUrl, accessToken, ...args] = process.argv.slice(2);\n"
        "console.debug = () => {};\n" + script
    )
    done = subprocess.run(
        [need_program("node"), str(path), *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestJavaScript:
    """@huggingface/hub."""

    @pytest.mark.parametrize("repo", [MODEL, SECRET])
    def test_a_whole_repository(
        self, client_site: ClientSite, node_client: Path, tmp_path: Path, repo: str
    ) -> None:
        script = """
            const params = {repo: args[0], hubUrl, accessToken, cacheDir: args[1]};
            const folder = await hub.snapshotDownload(params);
            console.log(folder);
        """
        printed = run_node(node_client, script, client_site.server.url, TOKEN, repo, str(tmp_path))
        assert read_tree(Path(printed)) == client_site.files
        asked = client_site.control.requests()
        assert {entry["kind"] for entry in asked} == {"hub", "cas", "data"}

    def test_parts_and_questions(self, client_site: ClientSite, node_client: Path) -> None:
        script = """
            const repo = args[0], params = {repo, hubUrl, accessToken};
            const blob = await hub.downloadFile({...params, path: args[1]});
            const part = await blob.slice(1_000_000, 1_000_020).arrayBuffer();
            const files = [];
            for await (const file of hub.listFiles({...params, recursive: true})) files.push(file);
            const models = [];
            const search = {owner: "tester"};
            for await (const model of hub.listModels({hubUrl, accessToken, search}))
                models.push(model.name);
            console.log(JSON.stringify({
                size: blob.size,
                part: Buffer.from(part).toString("hex"),
                files: files.filter((f) => f.type === "file").map((f) => f.path),
                xet: files.some((f) => f.xetHash),
                user: (await hub.whoAmI({hubUrl, accessToken})).name,
                exists: [await hub.fileExists({...params, path: args[1]}),
                         await hub.fileExists({...params, path: "no"})],
                none: await hub.downloadFile({...params, path: "no"}),
                models,
            }));
        """
        printed = run_node(node_client, script, client_site.server.url, TOKEN, MODEL, LARGE)
        found = json.loads(printed)
        content = client_site.files[LARGE]
        assert (found["size"], found["part"]) == (len(content), content[1_000_000:1_000_020].hex())
        assert set(found["files"]) - {".gitattributes"} == set(client_site.files)
        assert (found["user"], found["exists"], found["none"]) == ("tester", [True, False], None)
        assert not found["xet"]
        assert {MODEL, SECRET} <= set(found["models"])

    def test_repositories(
        self, client_site: ClientSite, node_client: Path, launcher: Launcher
    ) -> None:
        server = launcher.start(*serve_arguments(client_site.origin.url, "--repo-management", "on"))
        script = """
            const repo = {type: "dataset", name: "tester/by-node"};
            const params = {repo, hubUrl, accessToken};
            const made = await hub.createRepo({...params, private: true});
            const stranger = {repo, hubUrl, accessToken: args[0]};
            const seen = [await hub.repoExists(params), await hub.repoExists(stranger)];
            await hub.deleteRepo(params);
            console.log(JSON.stringify([made.repoUrl, ...seen, await hub.repoExists(params)]));
        """
        printed = run_node(node_client, script, server.url, TOKEN, OTHER_TOKEN)
        url = f"{server.url}/datasets/tester/by-node"
        assert json.loads(printed) == [url, True, False, False]


@pytest.fixture(scope="module")
def table(_running_client_site: ClientSite, data_client: str) -> Path:
    """A Parquet file of many row groups, also in the dataset TABLE."""
    folder = _running_client_site.folder / "table"
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "train-00000-of-00001.parquet"
    script = """
        import numpy, pyarrow, pyarrow.parquet
        source = numpy.random.default_rng(3)
        count = int(sys.argv[2])
        columns = {"number": numpy.arange(count), "noise": source.random(count),
                   "word": [f"größe {n}" for n in range(count)]}
        pyarrow.parquet.write_table(pyarrow.table(columns), sys.argv[1], row_group_size=count // 20)
    """
    run_script(data_client, "http://none", folder, script, str(path), str(NUM_ROWS))
    origin = _running_client_site.origin.url
    upload(sys.executable, origin, _running_client_site.folder / "home", "dataset", TABLE, folder)
    return path


class TestTables:
    """datasets, pandas and pyarrow, with huggingface_hub 2.4 and no hf-xet."""

    def test_streamed_and_loaded(
        self, table: Path, client_site: ClientSite, data_client: str, tmp_path: Path
    ) -> None:
        script = """
            from datasets import load_dataset
            import pyarrow.parquet
            repo, path = sys.argv[1:]
            expected = pyarrow.parquet.read_table(path).to_pydict()
            streamed = {name: [] for name in expected}
            for batch in load_dataset(repo, split="train", streaming=True).iter(10_000):
                for name in expected:
                    streamed[name] += batch[name]
            loaded = load_dataset(repo, split="train")
            print(streamed == expected, loaded.data.table.to_pydict() == expected)
        """
        printed = run_script(
            data_client, client_site.server.url, tmp_path, script, TABLE, str(table)
        )
        assert printed.splitlines()[-1] == "True True"
        assert {entry["kind"] for entry in client_site.control.requests()} == {"hub", "cas", "data"}

    def test_parts_of_it(
        self, table: Path, client_site: ClientSite, data_client: str, tmp_path: Path
    ) -> None:
        script = """
            import pandas, pyarrow.parquet
            repo, path = sys.argv[1:]
            url = f"hf://datasets/{repo}/data/train-00000-of-00001.parquet"
            whole = pandas.read_parquet(url)
            column = pandas.read_parquet(url, columns=["number"])
            local = pandas.read_parquet(path)
            with HfFileSystem().open(url.removeprefix("hf://"), block_size=65536) as file:
                group = pyarrow.parquet.ParquetFile(file).read_row_group(7, columns=["word"])
            expected = pyarrow.parquet.ParquetFile(path).read_row_group(7, columns=["word"])
            print(whole.equals(local), column.equals(local[["number"]]), group.equals(expected))
        """
        printed = run_script(
            data_client, client_site.server.url, tmp_path, script, TABLE, str(table)
        )
        assert printed.splitlines()[-1] == "True True True"

    def test_a_whole_repository_without_hf_xet(
        self, client_site: ClientSite, data_client: str, tmp_path: Path
    ) -> None:
        script = """
            import importlib.util, huggingface_hub
            snapshot_download(sys.argv[1], local_dir=sys.argv[2])
            print(huggingface_hub.__version__[:4], importlib.util.find_spec("hf_xet"))
        """
        target = tmp_path / "out"
        printed = run_script(
            data_client, client_site.server.url, tmp_path, script, SECRET, str(target)
        )
        assert printed == "2.4. None"
        assert read_tree(target) == client_site.files


# With what each of them takes to download in many parts, where it can.
PARALLEL = {"curl": (), "wget": (), "aria2": ("-x16", "-s16", "-k1M")}


class TestPlainClients:
    """curl, wget and aria2 at /resolve/."""

    @pytest.mark.parametrize("client", CLIENTS)
    def test_every_file(self, client_site: ClientSite, tmp_path: Path, client: str) -> None:
        for name, content in client_site.files.items():
            url = f"{client_site.server.url}/{SECRET}/resolve/main/{urllib.parse.quote(name)}"
            done = run(CLIENTS[client](url, tmp_path / "out", *PARALLEL[client]))
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "out").read_bytes() == content

    @pytest.mark.parametrize(
        ("client", "option"), [("curl", ("-C", "-")), ("wget", ("-c",)), ("aria2", ("-c",))]
    )
    def test_a_download_goes_on(
        self, client_site: ClientSite, tmp_path: Path, client: str, option: tuple[str, ...]
    ) -> None:
        content = client_site.files[LARGE]
        url = f"{client_site.server.url}/{SECRET}/resolve/main/{LARGE}"
        (tmp_path / "out").write_bytes(content[:20_000_000])
        command = CLIENTS[client](url, tmp_path / "out", *option)
        done = run([part for part in command if part != "--allow-overwrite=true"])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out").read_bytes() == content
