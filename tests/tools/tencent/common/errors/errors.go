// Package errors has the error type that flanneld's tencent-vpc backend asks for.
package errors

// TencentCloudSDKError is never returned by the test bed's client.
type TencentCloudSDKError struct{}

func (*TencentCloudSDKError) Error() string { return "tencent cloud" }
