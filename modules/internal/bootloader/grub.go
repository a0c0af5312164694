// SPDX-License-Identifier: Apache-2.0

package bootloader

import "strings"

// RenderGRUB gives the file of additions for GRUB. grub-mkconfig reads it as shell, after /etc/default/grub, so it can add
// to what the user wrote there, or leave something out of it, without touching it. A parameter that is there already is not
// added again; with nothing to do, the lines stay as they are to the byte.
func RenderGRUB(header string, present, absent []string) string {
	var names, whole []string

	for _, pattern := range absent {
		if strings.Contains(pattern, "=") {
			whole = append(whole, pattern)
		} else {
			names = append(names, pattern)
		}
	}

	text := header

	if len(absent) > 0 {
		text += withoutFunction
		for _, variable := range []string{"GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"} {
			for _, pattern := range whole {
				text += `thinkube_without "$` + variable + `" ` + quote(pattern+" ") + ` && ` + variable + `=$thinkube_line` + "\n"
			}

			for _, name := range names {
				for _, spelling := range spellings(name) {
					text += `thinkube_without "$` + variable + `" ` + quote(spelling+" ") + ` && ` + variable + `=$thinkube_line` + "\n"
					text += `thinkube_without "$` + variable + `" ` + quote(spelling+"=") + ` && ` + variable + `=$thinkube_line` + "\n"
				}
			}
		}
	}

	for _, parameter := range present {
		text += `case " $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT " in
*` + quote(" "+parameter+" ") + `*) ;;
*) GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT${GRUB_CMDLINE_LINUX_DEFAULT:+ }"` + quote(parameter) + ` ;;
esac
`
	}

	return text
}

// spellings gives all ways to write a parameter's name, - and _ being the same to the kernel.
func spellings(name string) []string {
	at := strings.IndexAny(name, "-_")
	if at < 0 {
		return []string{name}
	}

	var all []string

	for _, rest := range spellings(name[at+1:]) {
		all = append(all, name[:at]+"_"+rest, name[:at]+"-"+rest)
	}

	return all
}

// withoutFunction leaves all words out of a line that begin with a text. It succeeds always, since grub-mkconfig ends at
// the first failure.
const withoutFunction = `thinkube_without() {
	thinkube_line=" $1 "
	while :; do
		case $thinkube_line in
		*" $2"*) ;;
		*) break ;;
		esac
		thinkube_rest=${thinkube_line#*" $2"}
		case $2 in
		*=) thinkube_rest=${thinkube_rest#*" "} ;;
		esac
		thinkube_line="${thinkube_line%%" $2"*} $thinkube_rest"
	done
	thinkube_line=${thinkube_line# }
	thinkube_line=${thinkube_line% }
}
`

// quote makes one word for a shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
