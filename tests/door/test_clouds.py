"""gs:// and az://: a server of each dialect, as far as walrust speaks it, that holds objects in memory and honours conditions."""

import email.utils
import hashlib
import http.server
import re
import threading
import unittest
import urllib.parse
from xml.sax.saxutils import escape

import door


class Cloud:
    """What Google's XML API and Azure's Blob API have in common: objects by key, conditional PUT, ranges, listing."""

    def __init__(self, test, root):
        self.objects, self.seen, self.root = {}, [], root
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
                path = urllib.parse.unquote(url.path)
                cloud.seen.append((self.command, path, query))
                if not path.startswith(cloud.root):
                    return self.answer(404)
                key = path[len(cloud.root):].lstrip("/")
                if self.command == "GET" and not key:
                    return self.answer(200, cloud.listing(query).encode(), {"Content-Type": "application/xml"})
                held = cloud.objects.get(key)
                if query.get("comp") == "batch":
                    for path in re.findall(r"(?m)^DELETE (\S+) ", body.decode()):
                        cloud.objects.pop(urllib.parse.unquote(path.split("?")[0])[len(cloud.root):].lstrip("/"), None)
                    parts = [f"--answers\r\nContent-Type: application/http\r\nContent-ID: {n}\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n"
                             for n in re.findall(r"(?mi)^Content-ID: *(\d+)", body.decode())]
                    return self.answer(202, ("".join(parts) + "--answers--\r\n").encode(), {"Content-Type": "multipart/mixed; boundary=answers"})
                if self.command == "PUT":
                    create = self.headers.get("x-goog-if-generation-match") == "0" or self.headers.get("If-None-Match") == "*"
                    wanted = self.headers.get("x-goog-if-generation-match") or self.headers.get("If-Match")
                    if create and held:
                        return self.answer(*cloud.exists)
                    if wanted and not create and (not held or wanted.strip('"') != held[1]):
                        return self.answer(412)
                    cloud.objects[key] = held = (body, str(len(cloud.seen)))
                    return self.answer(cloud.created, b"", self.about(held))
                if not held:
                    return self.answer(404, b"<Error><Code>BlobNotFound</Code></Error>", {"x-ms-error-code": "BlobNotFound"})
                if self.command == "DELETE":
                    del cloud.objects[key]
                    return self.answer(202)
                data, part = held[0], re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range") or self.headers.get("Range") or "")
                if part:
                    first, last = int(part[1]), min(int(part[2] or len(data) - 1), len(data) - 1)
                    return self.answer(206, data[first:last + 1], {**self.about(held), "Content-Range": f"bytes {first}-{last}/{len(data)}"})
                self.answer(200, data, self.about(held))

            def about(self, held):
                return {"ETag": f'"{held[1]}"', "x-goog-generation": held[1], "Last-Modified": email.utils.formatdate(usegmt=True),
                        "x-ms-blob-type": "BlockBlob"}

            def answer(self, status, body=b"", headers=None):
                self.send_response_only(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        test.addCleanup(self.server.server_close)
        test.addCleanup(self.server.shutdown)

    def under(self, query):
        """(objects, common prefixes) of a listing."""
        prefix, delimiter, found, folders = query.get("prefix", ""), query.get("delimiter"), [], set()
        for key in sorted(self.objects):
            if key.startswith(prefix):
                rest = key[len(prefix):]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    found.append((key, *self.objects[key]))
        return found, sorted(folders)


class Google(Cloud):
    exists, created = (412,), 200

    def listing(self, query):
        found, folders = self.under(query)
        return "<ListBucketResult><IsTruncated>false</IsTruncated>" + "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{tag}</ETag>"
            f"<Size>{len(data)}</Size></Contents>" for key, data, tag in found
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders) + "</ListBucketResult>"


class Azure(Cloud):
    exists, created = (409, b"", {"x-ms-error-code": "BlobAlreadyExists"}), 201

    def listing(self, query):
        found, folders = self.under(query)
        return '<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>' + "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{email.utils.formatdate(0, usegmt=True)}</Last-Modified><Etag>{tag}</Etag>"
            f"<Content-Length>{len(data)}</Content-Length><Content-Type>x/y</Content-Type></Properties></Blob>" for key, data, tag in found
        ) + "".join(f"<BlobPrefix><Name>{escape(f)}</Name></BlobPrefix>" for f in folders) + "</Blobs><NextMarker /></EnumerationResults>"


class Clouds(door.DoorTest):
    def round_trip(self, cloud, url, env):
        p = self.peer(env=env).open(self.path("app.db"))
        self.assertIn(url, p.watch(url, interval="0s"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for i in range(3):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            txid = p.sync()
        p.sql("SELECT walrust_snapshot()")
        self.assertEqual(p.status()["replica"], url)
        # Laid out as Litestream does in every store but S3; what is ours alone under walrust/.
        for key in cloud.objects:
            self.assertRegex(key, r"^tenants/app/(ltx/\d/[0-9a-f]{16}-[0-9a-f]{16}\.ltx|walrust/((manifest-\w+|lease)\.json|blocks-[-\da-f]+))$")
        keys = {k.removeprefix("tenants/app/") for k in cloud.objects if "/ltx/" in k}
        rows = p.rows("SELECT key, sha256 FROM walrust_files")
        self.assertEqual({k for k, _ in rows}, keys)
        for key, sha in rows:
            self.assertEqual(hashlib.sha256(cloud.objects["tenants/app/" + key][0]).hexdigest(), sha)
        out, at = self.restore(url, env=env)
        self.assertEqual(at, txid)
        self.assertSameBytes(self.path("app.db"), out)
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))
        self.assertEqual(p.rows("SELECT name, replica, max_txid FROM walrust_list(?)", url.rsplit("/", 1)[0]), [("app", url, txid)])
        preview = p.sql("SELECT walrust_explain()")
        p.end()
        return preview

    def test_google(self):
        cloud = Google(self, "/bucket")
        key = self.path("key.json")
        with open(key, "w") as f:
            f.write('{"private_key": "none", "private_key_id": "none", "client_email": "none", "disable_oauth": true, "gcs_base_url": "%s"}' % cloud.endpoint)
        preview = self.round_trip(cloud, "gs://bucket/tenants/app", {"GOOGLE_SERVICE_ACCOUNT": key, "GOOGLE_ALLOW_HTTP": "true"})
        self.assertRegex(preview, r"(?m)^Google Cloud Storage Destination:\nBucket: bucket\nPrefix: tenants/app$")
        self.assertRegex(preview, r"(?m)^Monthly cost: .* \(Google Cloud Storage Standard pricing, \d{4}\)$")

    def test_azure(self):
        cloud = Azure(self, "/devstoreaccount1/container")
        preview = self.round_trip(cloud, "az://container/tenants/app", {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": cloud.endpoint})
        self.assertRegex(preview, r"(?m)^Azure Destination:\nContainer: container\nPrefix: tenants/app$")
        self.assertRegex(preview, r"(?m)^Monthly cost: .* \(Azure Blob Hot LRS pricing, \d{4}\)$")


if __name__ == "__main__":
    unittest.main()
