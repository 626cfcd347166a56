import java.io.*;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.zip.*;
import javax.tools.*;

/**
 * Compiles one source file after another in one warm virtual machine; arguments: the options of javac.
 *
 * Request: length (int), source. Answer: 0 and a jar, or 1 and what javac said; each with its length (int). Nothing of a
 * program is kept or run: sources and classes live in the memory of their own task, and annotation processing is off.
 */
public final class CompileServer {
    public static void main(String[] options) throws IOException {
        var compiler = ToolProvider.getSystemJavaCompiler();
        var files = compiler.getStandardFileManager(null, null, StandardCharsets.UTF_8);
        var in = new DataInputStream(new BufferedInputStream(System.in));
        var out = new DataOutputStream(new BufferedOutputStream(System.out));
        while (true) {
            int length;
            try {
                length = in.readInt();
            } catch (EOFException end) {
                return;
            }
            var source = new String(in.readNBytes(length), StandardCharsets.UTF_8);
            var said = new StringWriter();
            var classes = new Classes(files);
            boolean good;
            try {
                var unit = List.of(new Source(source));
                good = compiler.getTask(said, classes, null, List.of(options), null, unit).call();
            } catch (OutOfMemoryError | StackOverflowError | RuntimeException failure) {
                said.append(failure.toString());
                good = false;
            }
            var answer = good ? classes.jar() : said.toString().getBytes(StandardCharsets.UTF_8);
            out.writeByte(good ? 0 : 1);
            out.writeInt(answer.length);
            out.write(answer);
            out.flush();
        }
    }

    private static final class Source extends SimpleJavaFileObject {
        private final String text;

        Source(String text) {
            super(URI.create("string:///Problem.java"), Kind.SOURCE);
            this.text = text;
        }

        @Override
        public CharSequence getCharContent(boolean ignoreEncodingErrors) {
            return text;
        }
    }

    private static final class Classes extends ForwardingJavaFileManager<StandardJavaFileManager> {
        private final Map<String, ByteArrayOutputStream> written = new TreeMap<>();

        Classes(StandardJavaFileManager files) {
            super(files);
        }

        @Override
        public JavaFileObject getJavaFileForOutput(Location where, String name, JavaFileObject.Kind kind, FileObject of) {
            return new SimpleJavaFileObject(URI.create("memory:///" + name.replace('.', '/') + kind.extension), kind) {
                @Override
                public OutputStream openOutputStream() {
                    var bytes = new ByteArrayOutputStream();
                    written.put(name.replace('.', '/') + kind.extension, bytes);
                    return bytes;
                }
            };
        }

        byte[] jar() throws IOException {
            var bytes = new ByteArrayOutputStream();
            try (var zip = new ZipOutputStream(bytes)) {
                zip.setLevel(Deflater.NO_COMPRESSION);
                for (var each : written.entrySet()) {
                    zip.putNextEntry(new ZipEntry(each.getKey()));
                    each.getValue().writeTo(zip);
                }
            }
            return bytes.toByteArray();
        }
    }
}
