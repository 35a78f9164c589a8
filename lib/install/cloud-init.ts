/**
 * The user data by which cloud-init makes a new instance a host for VMs.
 *
 * @module
 */

import { fromFileUrl } from "@std/path";
import type { CloudInitRequest } from "../cli/install-command.ts";
import { InputError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { parsePorts } from "../inet/ports.ts";
import { validateName } from "../vm/record/identity.ts";
import { hasSources, ROOT } from "./bundle.ts";

/** What a checkout needs to install itself. */
const SOURCES = ["deno.json", "deno.lock", "install.ts", "lib", "mod.ts", "scripts", "types"];

const DIRECTORY = "/opt/tapkit";
const ARCHIVE = `${DIRECTORY}.tar.gz`;
const BIN = "/usr/local/bin";

/**
 * The document, `#cloud-config` in its first line.
 *
 * @throws {InputError} when a name or a port is wrong, or there are no sources to carry
 */
export function cloudConfig(request: CloudInitRequest): string {
  const { binary, vm } = request;
  if (vm !== undefined) {
    validateName(vm.name);
    parsePorts(vm.ports);
  }
  if (binary === undefined && !hasSources()) {
    throw new InputError("there are no sources here for the document to carry", {
      mend: "name a binary with --binary-url and --sha256, or run install.ts in a checkout",
    });
  }
  const script = [
    ...binary === undefined ? fromSources(request) : fromBinary(binary, request),
    ...networkCommands(request),
    ...vmCommands(request),
  ].join("\n");
  const carried = binary === undefined
    ? `packages:
  - npm
write_files:
  - path: ${ARCHIVE}
    encoding: b64
    content: |
${indented(archive(), 6)}
`
    : "";
  return `#cloud-config
# Makes a new instance a host for virtual machines on tapkit's networks.
${carried}runcmd:
  - - sh
    - -euc
    - |
${indented(script, 6)}
`;
}

function fromBinary(
  { url, sha256 }: { readonly url: string; readonly sha256: string },
  request: CloudInitRequest,
): string[] {
  return [
    "directory=$(mktemp -d -p /var/lib)",
    "cd $directory",
    "if command -v curl >/dev/null; then",
    `  curl -fsSL --retry 5 --output tapkit ${quote(url)}`,
    "else",
    `  python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' \\`,
    `    ${quote(url)} tapkit`,
    "fi",
    `echo '${sha256}  tapkit' | sha256sum --check --quiet`,
    "chmod 755 tapkit",
    `./tapkit install ${flags(request)}`,
    "cd /",
    "rm -r $directory",
  ];
}

function fromSources(request: CloudInitRequest): string[] {
  return [
    `mkdir -p ${DIRECTORY}`,
    `tar -xzf ${ARCHIVE} -C ${DIRECTORY}`,
    `rm ${ARCHIVE}`,
    `cd ${DIRECTORY}`,
    `npx -y deno@${Deno.version.deno} run -A install.ts --bundle ${flags(request)}`,
    "cd /",
  ];
}

const flags = ({ network }: CloudInitRequest) =>
  network === "weave" ? "--systemd --with-docker" : "--systemd";

function networkCommands({ network, peers }: CloudInitRequest): string[] {
  if (network === "default") return [`${BIN}/install-default-cni`];
  const words = peers === undefined ? "" : ` --peers ${quote(peers)}`;
  return ["systemctl enable --now docker", `${BIN}/setup-weave${words}`];
}

function vmCommands({ vm }: CloudInitRequest): string[] {
  if (vm === undefined) return [];
  const ports = vm.ports.map((port) => ` --ports ${quote(port)}`).join("");
  return [`${BIN}/attach-vm ${quote(vm.name)}${ports}`];
}

/** The sources as a compressed archive, in base64. The same sources are the same text. */
function archive(): string {
  const tar = ["tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
  const pack = `${tar.join(" ")} -C "$0" -c "$@" | gzip -9n | base64 -w 76`;
  return runSync("sh", ["-euc", pack, fromFileUrl(ROOT), ...SOURCES]).trimEnd();
}

function indented(text: string, spaces: number): string {
  return text.split("\n").map((line) => line === "" ? "" : " ".repeat(spaces) + line).join("\n");
}

/** A word for the shell. */
function quote(word: string): string {
  return /^[\w./:@%+=,[\]-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
