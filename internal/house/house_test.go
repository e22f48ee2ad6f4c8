package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is where the module lies.
const root = "../.."

// list runs go list as for the product's build.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for d := json.NewDecoder(&stdout); ; {
		var p struct {
			ImportPath, Name, Doc              string
			Standard                           bool
			Module                             *struct{ Path string }
			GoFiles, CgoFiles                  []string
			Imports, TestImports, XTestImports []string
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		q := pkg{
			path:         inModule(p.ImportPath),
			imports:      ours(p.Imports),
			testImports:  ours(slices.Concat(p.TestImports, p.XTestImports)),
			usesCgo:      len(p.CgoFiles) > 0,
			standard:     p.Standard,
			undocumented: p.Doc == "" && len(p.GoFiles) > 0,
		}
		if p.Module != nil && p.Module.Path != module {
			q.module = p.Module.Path
		}
		pkgs = append(pkgs, q)
	}
}

// inModule takes the module's name off the path of one of its packages.
func inModule(path string) string { return strings.TrimPrefix(path, module+"/") }

// ours gives those packages that are of this module.
func ours(paths []string) []string {
	var own []string
	for _, p := range paths {
		if strings.HasPrefix(p, module+"/") {
			own = append(own, inModule(p))
		}
	}
	return own
}

func report(t *testing.T, vs []violation) {
	t.Helper()
	for _, v := range vs {
		t.Error(v)
	}
}

func TestRooms(t *testing.T) { report(t, checkRooms(list(t, "./..."))) }

func TestProduct(t *testing.T) { report(t, checkProduct(list(t, "-deps", "./cmd/gdbserver-xen"))) }

func TestSources(t *testing.T) {
	files := 0
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != root && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(file) != ".go":
			return nil
		}
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		vs, err := checkSource(filepath.ToSlash(name), src)
		report(t, vs)
		files++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("found only %d files: this test does not see the module", files)
	}
}

// TestRoomsAreThere keeps the lists from naming what has gone.
func TestRoomsAreThere(t *testing.T) {
	doc, err := os.ReadFile(root + "/docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	last := -1
	for _, r := range rooms {
		at := bytes.Index(doc, []byte("\n"+r+"/ "))
		if at < 0 {
			t.Errorf("docs/architecture.md does not list the room %s/", r)
		}
		if at < last {
			t.Errorf("docs/architecture.md lists %s/ at another place than this test", r)
		}
		last = at
	}
}
