// SPDX-License-Identifier: Apache-2.0

package farm

import (
	"io"
	"os/exec"
	"syscall"
)

// janitor is a process that removes a folder when the one that started it is gone without a word.
type janitor struct {
	process *exec.Cmd
	word    io.WriteCloser // closed by the system, too, when this process is killed
}

// What is left of the killed process may write into the folder for a while: ansible-playbook, ssh.
const janitorScript = `
read word && exit
for pass in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1"; sleep 0.5; done`

func watch(folder string) (*janitor, error) {
	process := exec.Command("sh", "-c", janitorScript, "sh", folder)
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ^C ends must not be the janitor too

	word, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}

	return &janitor{process: process, word: word}, process.Start()
}

// dismiss ends the janitor with nothing done, if it has not ended yet.
func (j *janitor) dismiss() error {
	if j == nil || j.process.Process == nil || j.process.ProcessState != nil {
		return nil
	}

	_, err := io.WriteString(j.word, "stopped\n")
	if err != nil {
		return err
	}

	return j.process.Wait()
}
