"""Download the archive of this repository from a bucket, check it, and unpack it here.

    python3 fetch.py BUCKET OBJECT SHA256

gke.sh and tpu.sh have every host run this text, before the host has anything of the repository:
it needs a Python of 3.8 or later and no package. Whoever may write to the bucket could put other
code there, and only what has the hash is unpacked. GCE_METADATA_HOST and STORAGE_EMULATOR_HOST name
other servers, as for Google's own libraries. Exit status: 0 unpacked; 1 it could not be downloaded;
64 it is not the archive that was asked for, which no second try mends.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import sys
import tarfile
import time
import urllib.parse
import urllib.request

TRIES, PAUSE = 5, float(os.environ.get("FETCH_PAUSE", "5"))


def open_url(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Return the answer of a server; OSError if it refuses."""
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=300)


def token() -> str:
    """Return the access token of the service account of this machine or pod."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token"
    with open_url(url, {"Metadata-Flavor": "Google"}) as answer:
        return json.load(answer)["access_token"]


def storage() -> str:
    """Return the address of Cloud Storage."""
    return os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")


def download(bucket: str, name: str) -> bytes:
    """Return the contents of an object."""
    url = f"{storage()}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
    with open_url(url, {"Authorization": f"Bearer {token()}"}) as answer:
        return answer.read()


def main(bucket: str, name: str, digest: str) -> int:
    """Download, check and unpack; return the exit status."""
    for tries in range(1, TRIES + 1):
        try:
            archive = download(bucket, name)
            break
        except (OSError, ValueError) as error:
            print(f"gs://{bucket}/{name}: {error} (try {tries} of {TRIES})", file=sys.stderr)
            time.sleep(PAUSE * tries)
    else:
        print(
            "does the service account of this host have roles/storage.objectUser on the bucket?",
            file=sys.stderr,
        )
        return 1
    if hashlib.sha256(archive).hexdigest() != digest:
        print(f"gs://{bucket}/{name} is not what was uploaded: nothing is run", file=sys.stderr)
        return 64
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
