"""Google's storage-testbench with the parts of the XML API that it lacks and that disks need.

    git clone https://github.com/googleapis/storage-testbench && pip install ./storage-testbench
    python interop/gcs/xml_api.py PORT

It serves at 127.0.0.1, with a bucket `disks`. The testbench decides on conditions and has the objects.
Added here are listings, deletion, tags (which are the generations, as they may be), the generation in the
answer to a PUT, and the time of an object in the answer to a GET.
"""

import sys
from datetime import UTC
from email.utils import format_datetime
from xml.sax.saxutils import escape

import flask
import testbench
from testbench import rest_server
from werkzeug import serving

root, db = rest_server.root, rest_server.db

insert, get = db.insert_object, db.get_object


def insert_object(bucket, blob, **options):
    insert(bucket, blob, **options)
    flask.g.metadata = blob.metadata


def get_object(*args, **options):
    blob = get(*args, **options)
    flask.g.metadata = blob.metadata
    return blob


db.insert_object, db.get_object = insert_object, get_object


@root.route("/<bucket>/<path:name>", subdomain="", methods=["DELETE"])
def delete(bucket, name):
    conditions = testbench.common.make_xml_preconditions(flask.request)
    db.delete_object(bucket, name, preconditions=conditions)
    return "", 204


@root.route("/<bucket>", subdomain="")
def list_objects(bucket):
    asked = flask.request.args
    prefix, most = asked.get("prefix", ""), int(asked.get("max-keys", 1000))
    after = asked.get("continuation-token", asked.get("start-after", ""))
    items = db.list_object(flask.request, bucket, None)[0]
    items = sorted((item for item in items if item.name > after), key=lambda item: item.name)
    page = items[:most]
    contents = "".join(
        f"<Contents><Key>{escape(item.name)}</Key><ETag>&quot;{item.generation}&quot;</ETag>"
        f"<Size>{item.size}</Size>"
        f"<LastModified>{item.create_time.ToJsonString()}</LastModified></Contents>"
        for item in page
    )
    more = len(items) > most
    token = f"<NextContinuationToken>{escape(page[-1].name)}</NextContinuationToken>" if more else ""
    text = (
        f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
        f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        f"{contents}{token}</ListBucketResult>"
    )
    return flask.Response(text, content_type="application/xml")


@root.after_request
def complete(response):
    metadata = flask.g.get("metadata")
    if metadata is not None and response.status_code in (200, 206):
        made = metadata.create_time.ToDatetime(tzinfo=UTC)
        response.headers["x-goog-generation"] = str(metadata.generation)
        response.headers["ETag"] = f'"{metadata.generation}"'
        response.headers["Last-Modified"] = format_datetime(made, usegmt=True)
    return response


if __name__ == "__main__":
    application = rest_server._run()
    with application.test_client() as client:
        made = client.post("/storage/v1/b?project=disks", json={"name": "disks"})
        assert made.status_code == 200, made.data
    serving.WSGIRequestHandler.protocol_version = "HTTP/1.1"
    serving.run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
