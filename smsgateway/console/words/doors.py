"""Doors, changes and what all pages share."""

from __future__ import annotations

CHINESE = {
    "Skip to the content": "跳到正文",
    "Pages": "页面",
    "Sign in": "登录",
    "Sign out": "退出",
    "Token": "令牌",
    "Console": "控制台",
    "To the first page": "返回首页",
    "First page": "第一页",
    "Next page": "下一页",
    "Reason": "原因",
    "Stands in the log beside your token's name.": "将与您的令牌名称一起记入日志。",
    "The API token that you were given; `smsbill up` prints one, and `smsbill token create` makes more.": (
        "发给您的 API 令牌；`smsbill up` 会打印一个，`smsbill token create` 可再创建。"
    ),
    "The connection is lost; what you see is not new.": "连接已断开，所见内容不是最新的。",
    "Types that it may pay (none: all)": "可支付的短信类型（不选：全部）",
    "verification": "验证码",
    "notification": "通知",
    "marketing": "营销",
    # Titles of error pages.
    "That cannot be read": "无法读取该请求",
    "You are not signed in": "您尚未登录",
    "You may not do this": "您没有权限",
    "There is no such thing": "没有找到",
    "That cannot be done here": "此处不支持该操作",
    "That is not possible now": "现在无法执行",
    "That is too much": "内容过大",
    "Too much at once": "请求过多",
    "A part of the service cannot be reached": "服务的一部分无法连接",
    "That took too long": "耗时过长",
    "Something went wrong on our side": "我们这边出错了",
    "Nothing was shown or changed that should not be. The service's log has the details.": (
        "没有错误地显示或更改任何内容，详情见服务日志。"
    ),
    # Reasons of refusals.
    "ROLE_NOT_ALLOWED": "您的令牌没有所需的角色",
    "BRAND_NOT_ALLOWED": "您的令牌不适用于该品牌",
    "FORM_NOT_TRUSTED": "表单无法验证，请重新打开页面再提交",
    "UNAUTHENTICATED": "令牌不存在、已吊销或已过期",
    "TOO_MANY_SIGN_INS": "错误登录次数过多，请稍后再试",
    "UNAVAILABLE": "服务的一部分无法连接，请稍后重试",
    "DEADLINE_EXCEEDED": "未能及时得到答复，请稍后重试",
    "BAD_REQUEST": "有字段不符合规则",
}
