// Package common is what flanneld's tencent-vpc backend needs to compile. The test bed never uses that backend, and
// the cloud's own modules are large.
package common

// StringPtr returns a pointer to a copy.
func StringPtr(value string) *string { return &value }

// BoolPtr returns a pointer to a copy.
func BoolPtr(value bool) *bool { return &value }

// StringPtrs returns pointers to copies.
func StringPtrs(values []string) []*string {
	pointers := make([]*string, 0, len(values))
	for _, value := range values {
		pointers = append(pointers, StringPtr(value))
	}
	return pointers
}
