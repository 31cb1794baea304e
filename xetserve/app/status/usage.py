"""Usage examples for the page at /, with the host that the client used."""

from html import escape
from typing import Final, NamedTuple

from xetserve import __version__


class Example(NamedTuple):
    """A command and its purpose; {base} stands for our base URL."""

    title: str
    command: str


INTRODUCTION: Final = (
    "Files of a Xet-backed Hub over plain HTTP: rebuilt, verified and streamed while you wait."
)
PROMISE: Final = (
    "A transfer that ends without an error is the file: every chunk is hashed, and the end is "
    "withheld until the whole matches the file's hash."
)
EXAMPLES: Final = (
    Example(
        "Download a file: the Hub's own URL with this host",
        "curl --fail-with-body {base}/OWNER/REPO/resolve/main/model.gguf -o model.gguf",
    ),
    Example(
        "A private or gated file; /download also confirms the verification in a trailer",
        'curl --fail-with-body -H "Authorization: Bearer $HF_TOKEN" \\\n'
        "     {base}/download/OWNER/REPO/model.gguf -o model.gguf",
    ),
    Example(
        "With wget",
        'wget --header="Authorization: Bearer $HF_TOKEN" \\\n'
        "     {base}/download/OWNER/REPO/folder/model.safetensors",
    ),
    Example(
        "Datasets, spaces and kernels, branches, tags, commits and pull requests",
        'curl --fail-with-body -H "Authorization: Bearer $HF_TOKEN" -OJ \\\n'
        '     "{base}/download/OWNER/REPO/data.parquet?type=dataset&revision=refs/pr/1"',
    ),
    Example(
        "Download by Xet hash",
        'curl --fail-with-body -H "Authorization: Bearer $HF_TOKEN" \\\n'
        '     "{base}/download-hash/HASH?repo=OWNER/REPO" -o file.bin',
    ),
    Example("With the Hub's own clients", "HF_ENDPOINT={base} hf download OWNER/REPO"),
)
ENDPOINTS: Final = (
    ("/{owner}/{repo}/resolve/{revision}/{path}", "a file, as at the Hub"),
    ("/download/{owner}/{repo}/{path}", "a file; ?revision=, ?type=model|dataset|space|kernel"),
    ("/download-hash/{hash}", "a file by its Xet hash; ?repo=, ?type=, ?revision="),
    ("/health, /healthz", "is the server up"),
    ("/ready", "does it take new clients"),
    ("/metrics, /status", "figures, for Prometheus and as JSON"),
)


def make_usage_text(base_url: str) -> str:
    """Return the usage as plain text for terminals."""
    parts = [f"xetserve {__version__}", INTRODUCTION]
    for example in EXAMPLES:
        command = example.command.replace("{base}", base_url)
        parts.append(f"{example.title}:\n\n  " + command.replace("\n", "\n  "))
    width = max(len(path) for path, _ in ENDPOINTS) + 2
    parts.append("\n".join(f"{path:{width}}{what}" for path, what in ENDPOINTS))
    parts.append(PROMISE)
    return "\n\n".join(parts) + "\n"


def make_usage_html(base_url: str) -> str:
    """Return the usage as a section of HTML."""
    examples = "\n".join(
        f"<h3>{escape(example.title)}</h3>\n"
        f"<pre>{escape(example.command.replace('{base}', base_url))}</pre>"
        for example in EXAMPLES
    )
    rows = "\n".join(
        f"<tr><td><code>{escape(path)}</code></td><td>{escape(what)}</td></tr>"
        for path, what in ENDPOINTS
    )
    return (
        f'<section class="usage">\n<h2>Use it</h2>\n<p>{escape(INTRODUCTION)}</p>\n{examples}\n'
        f"<h3>Endpoints</h3>\n<table>\n{rows}\n</table>\n<p>{escape(PROMISE)}</p>\n</section>"
    )
