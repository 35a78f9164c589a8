import { assertEquals } from "@std/assert";
import { parseReport } from "../support/junit.ts";

/** As Deno 2.9.6 and 2.5.7 write it. */
const REPORT = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="5" failures="2" errors="0" time="0.023">
    <testsuite name="./x.test.ts" tests="5" disabled="1" errors="0" failures="2">
        <testcase name="a: ok &lt;&amp;&quot;" classname="./x.test.ts" time="0.001" line="1" col="6">
        </testcase>
        <testcase name="b: fails" classname="./x.test.ts" time="0.004" line="2" col="6">
            <failure message="1 test step failed">1 test step failed.</failure>
        </testcase>
        <testcase name="c: skipped" classname="./x.test.ts" time="0.000" line="3" col="6">
            <skipped/>
        </testcase>
        <testcase name="b: fails &gt; s1" classname="./x.test.ts" time="0.000" line="2" col="44">
        </testcase>
        <testcase name="b: fails &gt; s2" classname="./x.test.ts" time="0.002" line="2" col="71">
            <failure message="Uncaught Error: no">Error: no</failure>
        </testcase>
    </testsuite>
</testsuites>`;

Deno.test("parseReport: tells passed, failed and skipped tests, and which steps failed", () => {
  assertEquals(parseReport(REPORT), [
    { name: 'a: ok <&"', outcome: "passed", seconds: 0.001, failedSteps: [] },
    { name: "b: fails", outcome: "failed", seconds: 0.004, failedSteps: ["s2"] },
    { name: "c: skipped", outcome: "skipped", seconds: 0, failedSteps: [] },
  ]);
  assertEquals(parseReport(""), []);
});
