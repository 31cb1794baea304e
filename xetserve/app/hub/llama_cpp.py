"""What is special about llama.cpp: it reads only the first page of a list, and the Hub adds the
member ggufFile to the manifests that it asks for.
"""

from typing import Final

from xetserve.http.messages import Headers

_NAMES: Final = ("llama-cpp", "llama.cpp")


def is_llama_cpp(headers: Headers) -> bool:
    """Return whether a request is one of llama.cpp."""
    return (headers.get("user-agent") or "").lower().startswith(_NAMES)
