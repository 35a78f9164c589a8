import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import {
  findNetwork,
  listConfigFiles,
  parseConfig,
  readConfigFile,
  validateInterfaceName,
} from "../../lib/cni/conflist.ts";
import { locateJsonError } from "../../lib/cni/json-error.ts";
import { validateContainerId, validateNetworkName } from "../../lib/cni/types.ts";
import { InputError, TapkitError } from "../../lib/errors.ts";

function withDirectory(files: Record<string, string>, test: (directory: string) => void): void {
  const directory = Deno.makeTempDirSync();
  try {
    for (const [name, text] of Object.entries(files)) {
      Deno.writeTextFileSync(`${directory}/${name}`, text);
    }
    test(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

function config(name: string): string {
  return JSON.stringify({ cniVersion: "1.0.0", name, plugins: [{ type: "bridge" }] });
}

Deno.test("validateInterfaceName: takes what the kernel takes", () => {
  for (const name of ["eth0", "a", "vm_eth0", "br-0.100", "x".repeat(15)]) {
    validateInterfaceName(name);
  }
  // To others these are no name of one link.
  for (
    const name of ["all", "default", "br*", "br+", "b*r", "br%d", 'a"b', "a'b", "-a", "!a", "\x1b"]
  ) {
    assertThrows(() => validateInterfaceName(name), InputError, name);
  }
  for (const name of ["", ".", "..", "a/b", "a b", "a\tb", "a:1", "x".repeat(16), "ä".repeat(8)]) {
    assertThrows(() => validateInterfaceName(name), InputError);
  }
});

Deno.test("validateContainerId, validateNetworkName: take the specification's grammar", () => {
  for (const validate of [validateContainerId, validateNetworkName]) {
    for (const name of ["a", "0", "A.b_c-d", "x".repeat(300)]) validate(name);
    for (const name of ["", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n"]) {
      assertThrows(() => validate(name), InputError);
    }
  }
});

Deno.test("locateJsonError: points at the first error", () => {
  const cases: [text: string, line: number, column: number, problem: string][] = [
    ["", 1, 1, "expected a value, the text ends"],
    ["{", 1, 2, "expected a key in double quotes, the text ends"],
    ['{\n  "a": 1,\n}', 3, 1, 'expected a key in double quotes, found "}"'],
    ['{"a" 1}', 1, 6, 'expected ":", found "1"'],
    ['{"a": 1 "b": 2}', 1, 9, 'expected "," or "}", found "\\""'],
    ["[1, 2", 1, 6, 'expected "," or "]", the text ends'],
    ['{"a": tru}', 1, 7, 'expected a value, found "t"'],
    ['{"a": "b\n"}', 1, 7, "this string is unterminated or malformed"],
    ['{"a": "\\x"}', 1, 7, "this string is unterminated or malformed"],
    ["{} x", 1, 4, 'expected the end of the text, found "x"'],
    ["{'a': 1}", 1, 2, 'expected a key in double quotes, found "\'"'],
    ["[01]", 1, 3, 'expected "," or "]", found "1"'],
    ["\uFEFF{}", 1, 1, 'expected a value, found "\uFEFF"'],
    ["[".repeat(200_000), 1, 1, "it is nested too deeply"],
  ];
  for (const [text, line, column, problem] of cases) {
    assertThrows(() => JSON.parse(text));
    assertEquals(locateJsonError(text), { line, column, problem }, text.slice(0, 40));
  }
});

Deno.test("parseConfig: reads a list, and wraps a single plugin into one", () => {
  const list = parseConfig(config("net"), "/x/10.conflist");
  assertEquals([list.name, list.cniVersion, list.plugins.length], ["net", "1.0.0", 1]);
  assertEquals([list.disableCheck, list.disableGC, list.path], [false, false, "/x/10.conflist"]);
  const single = parseConfig(
    '{"cniVersion":"0.3.1","name":"one","type":"ptp","mtu":9}',
    "/x/1.conf",
  );
  assertEquals(single.plugins, [{ cniVersion: "0.3.1", name: "one", type: "ptp", mtu: 9 }]);
});

Deno.test("parseConfig: takes the newest version both sides know, and 0.1.0 where none is said", () => {
  const cases: [cniVersion: unknown, cniVersions: unknown, version: string][] = [
    ["0.4.0", undefined, "0.4.0"],
    ["0.4.0", ["0.4.0", "1.0.0", "9.0.0"], "1.0.0"],
    ["1.1.0", ["0.4.0"], "1.1.0"],
    [undefined, ["0.3.1", "0.4.0"], "0.4.0"],
    ["9.0.0", ["0.3.1"], "0.3.1"],
    ["0.4.0", [], "0.4.0"],
    [undefined, undefined, "0.1.0"],
    ["", undefined, "0.1.0"],
    ["", ["0.4.0"], "0.4.0"],
  ];
  for (const [cniVersion, cniVersions, version] of cases) {
    const text = JSON.stringify({ name: "n", type: "bridge", cniVersion, cniVersions });
    assertEquals(parseConfig(text, "f").cniVersion, version, text);
  }
});

Deno.test("parseConfig: takes flags as booleans and as words", () => {
  const flags = (value: unknown) => {
    const raw = { name: "n", disableCheck: value, disableGC: value, plugins: [{ type: "bridge" }] };
    const { disableCheck, disableGC } = parseConfig(JSON.stringify(raw), "f");
    return [disableCheck, disableGC];
  };
  for (const value of [true, "true", "True", "TRUE"]) assertEquals(flags(value), [true, true]);
  for (const value of [undefined, false, "false"]) assertEquals(flags(value), [false, false]);
});

Deno.test("parseConfig: a list or a single plugin is known by its keys, else by the ending", () => {
  const single = { cniVersion: "1.0.0", name: "n", type: "ptp" };
  const list = { cniVersion: "1.0.0", name: "n", plugins: [{ type: "bridge" }, { type: "sbr" }] };
  const cases: [path: string, raw: Record<string, unknown>, types: string[]][] = [
    ["/d/1.conf", single, ["ptp"]],
    ["/d/1.conflist", single, ["ptp"]],
    ["/d/1.conf", list, ["bridge", "sbr"]],
    ["/d/1.json", list, ["bridge", "sbr"]],
    ["/d/1.conf", { ...single, ...list }, ["ptp"]],
    ["/d/1.conflist", { ...single, ...list }, ["bridge", "sbr"]],
  ];
  for (const [path, raw, types] of cases) {
    const { plugins } = parseConfig(JSON.stringify(raw), path);
    assertEquals(plugins.map(({ type }) => type), types, `${path} ${JSON.stringify(raw)}`);
  }
});

Deno.test("parseConfig: keys that it does not know are kept as libcni keeps them", () => {
  const text =
    '{"name":"n","type":"x","a":9007199254740993,"b":1,"b":2,"c":1,"c":[null],"__proto__":{"d":1}}';
  const [plugin] = parseConfig(text, "f").plugins;
  assertEquals(
    JSON.stringify(plugin),
    '{"name":"n","type":"x","a":9007199254740992,"b":2,"c":[null],"__proto__":{"d":1}}',
  );
});

Deno.test("readConfigFile: plugins in the directory of the network's name follow those of the list", () => {
  const more = (type: string) => JSON.stringify({ type, key: 1 });
  const inlined = { name: "net", plugins: [{ type: "bridge" }] };
  const cases: [file: string, raw: Record<string, unknown>, types: string[]][] = [
    ["10.conflist", inlined, ["bridge", "tuning", "sbr"]],
    ["10.conflist", { name: "net" }, ["tuning", "sbr"]],
    ["10.conflist", { ...inlined, loadOnlyInlinedPlugins: false }, ["bridge", "tuning", "sbr"]],
    ["10.conflist", { ...inlined, loadOnlyInlinedPlugins: "True" }, ["bridge"]],
    ["10.conflist", { ...inlined, name: "other" }, ["bridge"]],
    ["10.conf", { name: "net", type: "ptp" }, ["ptp"]],
  ];
  for (const [file, raw, types] of cases) {
    withDirectory({ [file]: JSON.stringify(raw) }, (d) => {
      Deno.mkdirSync(`${d}/net`);
      Deno.writeTextFileSync(`${d}/net/9.conf`, more("sbr"));
      Deno.writeTextFileSync(`${d}/net/10.conf`, more("tuning"));
      Deno.writeTextFileSync(`${d}/net/11.conflist`, more("no"));
      for (
        const list of [
          readConfigFile(`${d}/${file}`),
          findNetwork(d),
          findNetwork(d, String(raw.name)),
        ]
      ) {
        assertEquals(list?.plugins.map(({ type }) => type), types, JSON.stringify(raw));
      }
    });
  }
});

Deno.test("readConfigFile: a broken plugin of the directory is named; the directory alone is no network", () => {
  withDirectory({}, (d) => {
    Deno.mkdirSync(`${d}/net`);
    assertEquals([listConfigFiles(d), findNetwork(d)], [[], undefined]);
    Deno.writeTextFileSync(`${d}/10.conflist`, config("net"));
    assertEquals(findNetwork(d)?.plugins.length, 1);
    Deno.writeTextFileSync(`${d}/net/5.conf`, "{}");
    assertThrows(() => findNetwork(d), TapkitError, `${d}/net/5.conf has no "type"`);
    Deno.writeTextFileSync(`${d}/net/5.conf`, "{");
    assertThrows(() => findNetwork(d), TapkitError, `${d}/net/5.conf is not valid JSON`);
  });
});

Deno.test("parseConfig: an error names the file, what is wrong and the mend", () => {
  const cases: [text: string, words: string][] = [
    ["{", "is not valid JSON: line 1, column 2"],
    ["[]", "is not a JSON object"],
    ["null", "is not a JSON object"],
    ["{}", 'has no "name"'],
    ['{"name":"a/b"}', "malformed name"],
    ['{"name":"a"}', 'has no list "plugins"'],
    ['{"name":3}', 'has no "name"'],
    ['{"name":"a","cniVersion":"7.0.0","type":"bridge"}', 'unknown cniVersion "7.0.0"'],
    ['{"name":"a","cniVersion":1,"type":"bridge"}', "unknown cniVersion"],
    ['{"name":"a","cniVersion":"1.0.0"}', 'has no list "plugins"'],
    ['{"name":"a","cniVersion":"1.0.0","plugins":{}}', 'has no list "plugins"'],
    ['{"name":"a","cniVersion":"1.0.0","plugins":[]}', 'has an empty list "plugins"'],
    ['{"name":"a","cniVersion":"1.0.0","plugins":null}', 'has an empty list "plugins"'],
    ['{"name":"a","cniVersion":"1.0.0","plugins":[{}]}', '7.conf, plugin 0, has no "type"'],
    ['{"name":"a","cniVersion":"1.0.0","plugins":[3]}', "7.conf, plugin 0, is not a JSON object"],
    ['{"name":"a","cniVersion":"1.0.0","type":"../x"}', "is a path"],
    ['{"name":"a","cniVersion":"1.0.0","type":3}', '7.conf has no "type"'],
    ['{"name":"a","cniVersions":["9.0.0"],"type":"b"}', 'unknown cniVersion "9.0.0"'],
    ['{"name":"a","cniVersions":"1.0.0","type":"b"}', '"cniVersions" that is not a list'],
    ['{"name":"a","type":"b","capabilities":[]}', '"capabilities" that is not a JSON object'],
    ['{"name":"a","type":"b","capabilities":{"ips":"true"}}', 'the capability "ips" "true"'],
    ['{"name":"a","type":"b","ipam":"host-local"}', '"ipam" that is not a JSON object'],
    ['{"name":"a","type":"b","loadOnlyInlinedPlugins":null}', '"loadOnlyInlinedPlugins" null'],
    ['{"name":"a","loadOnlyInlinedPlugins":true}', 'has an empty list "plugins"'],
    ['{"name":"a","cniVersion":"1.0.0","type":"b","disableGC":3}', '"disableGC" 3'],
  ];
  for (const [text, words] of cases) {
    const error = assertThrows(() => parseConfig(text, "/etc/cni/net.d/7.conf"), TapkitError);
    assertStringIncludes(error.message, "/etc/cni/net.d/7.conf");
    assertStringIncludes(error.message, words);
    assert(error.mend !== undefined, text);
  }
});

Deno.test("listConfigFiles: lists the three kinds in lexical order, and nothing of nothing", () => {
  withDirectory(
    { "b.conf": "", "a.conflist": "", "10.json": "", "c.txt": "", "9.conf": "" },
    (d) => {
      Deno.mkdirSync(`${d}/0.conf`);
      assertEquals(
        listConfigFiles(`${d}/`),
        ["10.json", "9.conf", "a.conflist", "b.conf"].map((n) => `${d}/${n}`),
      );
      assertEquals(listConfigFiles(`${d}/missing`), []);
      assertThrows(() => listConfigFiles(`${d}/c.txt`), TapkitError, "cannot be read");
    },
  );
});

Deno.test("findNetwork: takes the first file, which has to be whole", () => {
  withDirectory({ "10.conflist": config("first"), "20.conf": "{" }, (d) => {
    assertEquals(findNetwork(d)?.name, "first");
    assertEquals(findNetwork(`${d}/missing`), undefined);
    Deno.writeTextFileSync(`${d}/05.json`, "{");
    assertThrows(() => findNetwork(d), TapkitError, `${d}/05.json`);
  });
});

Deno.test("findNetwork: of two files with one name the first in lexical order is taken", () => {
  withDirectory({
    "10.conf": config("net"),
    "05.json": config("net"),
    "20.conflist": config("net"),
  }, (d) => {
    assertEquals(findNetwork(d, "net")?.path, `${d}/05.json`);
  });
});

Deno.test("findNetwork: a name is found past broken files, or the error says what there is", () => {
  withDirectory({ "05.conf": "{", "10.conflist": config("one"), "20.conf": config("two") }, (d) => {
    assertEquals(findNetwork(d, "two")?.path, `${d}/20.conf`);
    assertThrows(() => findNetwork(d, "three"), TapkitError, `${d}/05.conf`);
    Deno.removeSync(`${d}/05.conf`);
    const error = assertThrows(() => findNetwork(d, "three"), TapkitError, '"three"');
    assertEquals(error.mend, "choose one of one, two");
    assertThrows(() => findNetwork(d, "a b"), InputError);
    Deno.writeTextFileSync(`${d}/30.conf`, '{"name":"four"}');
    assertThrows(() => findNetwork(d, "four"), TapkitError, `${d}/30.conf`);
  });
});

Deno.test("findNetwork: a file that cannot be read is an error that names it", () => {
  withDirectory({}, (d) => {
    Deno.symlinkSync(`${d}/nothing`, `${d}/10.conf`);
    const error = assertThrows(() => findNetwork(d), TapkitError, `${d}/10.conf`);
    assertStringIncludes(error.message, `is a link to ${d}/nothing, which is not there`);
    assertStringIncludes(error.mend ?? "", "remove the link");
  });
});
