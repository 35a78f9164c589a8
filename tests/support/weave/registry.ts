/**
 * A registry on 127.0.0.1:5000 that holds one image, as `docker save` wrote it.
 *
 *   deno run -A registry.ts DIRECTORY
 */

const directory = Deno.args[0]!;
const [saved] = JSON.parse(Deno.readTextFileSync(`${directory}/manifest.json`));

async function blobOf(file: string, mediaType: string) {
  const bytes = Deno.readFileSync(`${directory}/${file}`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
  return { bytes, descriptor: { mediaType, size: bytes.length, digest: `sha256:${digest}` } };
}

const DOCKER = "application/vnd.docker";
const config = await blobOf(saved.Config, `${DOCKER}.container.image.v1+json`);
const layers = await Promise.all(
  saved.Layers.map((file: string) => blobOf(file, `${DOCKER}.image.rootfs.diff.tar.gzip`)),
);
const mediaType = `${DOCKER}.distribution.manifest.v2+json`;
const manifest = JSON.stringify({
  schemaVersion: 2,
  mediaType,
  config: config.descriptor,
  layers: layers.map(({ descriptor }) => descriptor),
});
const blobs = new Map(
  [config, ...layers].map(({ bytes, descriptor }) => [descriptor.digest, bytes]),
);

const onListen = () => console.log("ready");
Deno.serve({ hostname: "127.0.0.1", port: 5000, onListen }, ({ url }) => {
  const { pathname } = new URL(url);
  if (pathname === "/v2/") return Response.json({});
  if (pathname.includes("/manifests/")) {
    return new Response(manifest, { headers: { "content-type": mediaType } });
  }
  const bytes = blobs.get(pathname.slice(pathname.lastIndexOf("/") + 1));
  return new Response(bytes, { status: bytes === undefined ? 404 : 200 });
});
