"""A real server of an S3-compatible store, moto's, and what it does wrong on purpose."""
import contextlib, logging, os, sys, threading
from urllib.parse import parse_qs

SECRET = "planted-secret-0123456789"
BUCKET = "mill-bucket"


class Store:
    """The server; `hook(method, path, query, environ)` sees each request first, and answers it if it returns a status."""

    def __init__(self, endpoint, client):
        self.endpoint, self.client, self.hook = endpoint, client, None
        self.environment = os.environ | {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
                                         "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}

    def keys(self, prefix=""):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def get(self, key):
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def put(self, key, body):
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def unfinished(self):
        return self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])

    def gone(self, query):
        """Whether a request is for an upload that was given up, for which moto has no answer."""
        return "uploadId" in query and query["uploadId"][0] not in [upload["UploadId"] for upload in self.unfinished()]


@contextlib.contextmanager
def serve():
    sys.path.insert(0, os.environ["TOKENMILL_S3_PACKAGES"])
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    # Killed clients are no errors here.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = DomainDispatcherApplication(create_backend_app)
    store = None

    def hooked(environ, start_response):
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        status = store.hook and store.hook(environ["REQUEST_METHOD"], environ["PATH_INFO"], query, environ)
        if status is None:
            return app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Length", "0")])
        return [b""]

    server = make_server("127.0.0.1", 0, hooked, threaded=True, request_handler=MotoRequestHandler)
    endpoint = "http://%s:%d" % server.server_address[:2]
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET)
    store = Store(endpoint, client)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        server.shutdown()
        thread.join()
